"""Train the gene encoder on the training split.

ray job submit --working-dir . -- python jobs/pretrain_genes.py --config run.yaml
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["pretrain-genes", *sys.argv[1:]])
