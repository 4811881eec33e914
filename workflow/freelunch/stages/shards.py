"""Stage ``shards``: some of the windows of a reconstruction, by code of that stage, which takes them over."""

from freelunch.stages.reconstructed import make_shard as make

__all__ = ["make"]
