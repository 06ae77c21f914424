from tlsc.eval.cli import script

raise SystemExit(script())
