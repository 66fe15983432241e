"""Everything outside this process; the only importers of libvirt and subprocess."""
