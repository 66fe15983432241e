"""qrexec over vchan, for foreign agents, clients and daemons: a daemon for many domains, and an agent."""
