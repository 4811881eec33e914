"""The stages: each reads its upstream artifacts, calls the functions that compute, and writes one directory."""
