"""How good the events are: mean average precision, accuracies, and how sure one can be of them."""
