"""The process of one question: python -m benchmarks.gpu NAME (see `process`)."""

from .process import main

raise SystemExit(main())
