"""The methods, one file each: the network with its equations and source, and the losses of its own."""
