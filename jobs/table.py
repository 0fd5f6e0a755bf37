"""Make a table of methods or settings over folds and seeds.

ray job submit --working-dir . -- python jobs/table.py table1 --store STORE --out TABLEDIR --folds 5 --seeds 3
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["table", *sys.argv[1:]])
