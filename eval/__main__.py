from tlsc.eval.cli import main

raise SystemExit(main())
