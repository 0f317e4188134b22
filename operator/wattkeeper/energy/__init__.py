"""Energy of serving: a physical estimate times a learned LightGBM residual, its data, training and model card."""
