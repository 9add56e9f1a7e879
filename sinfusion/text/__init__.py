"""What knows words and images: CLIP, from a folder that the user brings."""
