"""What a trained run makes: videos (`video`), images (`image`), by one reverse process."""
