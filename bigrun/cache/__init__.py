"""The int8 cache: converted parts on the disk, one file each, mapped by the next start."""
