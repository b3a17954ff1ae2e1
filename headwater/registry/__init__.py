"""From Feast's registry to the feature plan; the one place, beside the Feast stores, that imports feast."""
