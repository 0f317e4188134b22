# The operator's image. BASE is any Debian-like image with Python 3.11 or newer, pip and venv.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/wattkeeper
COPY constraints.txt ./
COPY pyproject.toml README.md LICENSE ./
COPY operator ./operator
RUN /opt/wattkeeper/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM ${BASE}
# LightGBM's wheel uses the system's OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/wattkeeper /opt/wattkeeper
# The only folder that is writable in the cluster is /tmp.
ENV PATH=/opt/wattkeeper/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp MPLCONFIGDIR=/tmp
USER 65532:65532
ENTRYPOINT ["wattkeeper"]
CMD ["run"]
