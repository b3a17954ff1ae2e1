"""``headwater demo``: the whole system on real purchases, from nothing to a changed recommendation."""
