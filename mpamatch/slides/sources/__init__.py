"""What slides are read with: OpenSlide, tifffile, Pillow. `mpamatch.slides.reader` chooses."""
