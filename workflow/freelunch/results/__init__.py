"""Results on disk: folders, files with checksums, the manifest of a stage and the hash of its code."""
