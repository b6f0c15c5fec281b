"""Models of the Hugging Face hub: headers, configurations and downloads."""
