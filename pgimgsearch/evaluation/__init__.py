"""How good a model is: protocols with a truth, their figures with intervals, and what is kept of them."""
