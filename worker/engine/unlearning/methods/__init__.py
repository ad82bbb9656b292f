"""One file for each unlearning method, with `make_trainable(model, chosen, objective, work, progress)`.

It freezes the model, in place, but for what the method may change, and says how that is written back; the catalog's
entry (`app.catalog.methods`) names the file.
"""
