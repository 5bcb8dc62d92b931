"""What an answer must be, checked before anything is made, and the answers afterwards."""
