"""What every HTML page that we write shares."""
