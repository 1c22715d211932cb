"""What the analyses of dictionaries share: what latents read, what they do, and where they are active."""
