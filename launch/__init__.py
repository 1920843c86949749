"""Starting bjax elsewhere: batch scripts for schedulers, several processes on one machine, sweeps."""
