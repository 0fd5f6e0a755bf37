# gimp_ray on a Ray node with a GPU: the image of deploy/kuberay and, if you like, of cluster.yaml.
#
#   docker build --tag ghcr.io/YOUR-ORGANISATION/gimp-ray:0.1.0 .
#
# Written where there is no Docker: its lines are checked by tests/deploy/test_image.py, the image itself was not built.
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py311-gpu

# Ray's images run as the user ray (1000:100), who owns the Python environment; root is not needed.
USER ray
WORKDIR /home/ray

COPY --chown=1000:100 pyproject.toml constraints.txt README.md LICENSE /home/ray/build/
COPY --chown=1000:100 storage_schemas /home/ray/build/storage_schemas
COPY --chown=1000:100 gimp_ray /home/ray/build/gimp_ray

# constraints.txt pins torch without saying which build. PyPI's for Linux has CUDA, so no index of CPU builds may be named
# here; the next line ends the build where a CPU build came all the same. For a driver too old for it, name another CUDA's
# index: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cuXXX
ARG PIP_EXTRA_INDEX_URL=
RUN pip install --no-cache-dir --constraint build/constraints.txt './build[formats]' && rm -rf build
RUN python -c "import torch; assert torch.version.cuda, 'this torch has no CUDA'" && gimp --help > /dev/null

# after the installation, so that a changed entry point does not install everything again
COPY --chown=1000:100 jobs /home/ray/jobs
