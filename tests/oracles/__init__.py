"""The formulas once more, from the papers, slow and literal, in NumPy float64: nothing here imports efface."""
