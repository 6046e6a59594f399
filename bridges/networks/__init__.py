"""Networks that everything is compared on: toys trained here, pretrained ones, and their data."""
