"""The neural networks and the losses between images."""
