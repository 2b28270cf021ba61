"""A trained network for use outside of this package: what it computes, and the formats it is written in."""
