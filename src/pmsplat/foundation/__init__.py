"""Other people's pretrained networks, one file each."""
