"""One-shot tuning of an image model on one clip (Wu et al., ICCV 2023): `tune` it, then `retell` it in other words."""
