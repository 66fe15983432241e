"""What is done to qubes; asynchronous."""
