"""The guest's first programs: an initramfs with the modules of its disks and a small /init."""
