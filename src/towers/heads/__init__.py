"""Classification heads: the class weights and the loss they give."""
