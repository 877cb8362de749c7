"""Historical data: what older tools left behind, brought in once, proven, and taken out again if somebody wants that."""
