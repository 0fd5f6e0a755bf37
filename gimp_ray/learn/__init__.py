"""Training and prediction of any method, driven by what the method says of its stages (`gimp_ray.methods.base`)."""
