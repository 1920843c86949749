# The image that launch/'s files name: bjax, the versions of constraints.txt, and the repository as working directory.
#
#   docker build -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/bjax:latest .      for GPUs; --build-arg EXTRAS=tpu for TPUs
#   docker push REGION-docker.pkg.dev/PROJECT/REPOSITORY/bjax:latest
FROM python:3.11-slim

ARG EXTRAS=cuda12
WORKDIR /bjax
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e ".[${EXTRAS},report]"

CMD ["bjax", "--help"]
