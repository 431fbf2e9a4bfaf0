"""Move what lives out of packs that are mostly dead: `live` finds the chunks, `mover` writes them anew."""
