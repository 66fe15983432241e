"""The process that holds one running qube's channel."""
