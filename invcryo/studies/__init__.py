"""Studies: questions that are answered by many reconstructions, each a function and a folder of results."""
