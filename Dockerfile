# Three images for compose.yaml, each a target: node (agent and PostgreSQL 15), etcd, haproxy. All from Debian's packages.

FROM debian:bookworm-slim AS base
ENV LANG=C.UTF-8
# Healthy or not, asked with what every image has: see docker/answers.
COPY docker/answers /usr/local/bin/answers


# The agent's environment, built where pip is and carried to where it is not.
FROM debian:bookworm-slim AS agent
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/matriarch
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /usr/src/matriarch
# Pinned and hashed. Only etcd3 has no wheel; it is built by the pinned setuptools.
COPY requirements-build.txt requirements-agent.txt ./
RUN /opt/matriarch/bin/pip install -q --require-hashes -r requirements-build.txt \
    && /opt/matriarch/bin/pip install -q --require-hashes --no-build-isolation --only-binary :all: --no-binary etcd3 \
       -r requirements-agent.txt
COPY pyproject.toml README.md LICENSE ./
COPY fsm fsm
COPY effects effects
COPY api api
RUN /opt/matriarch/bin/pip install -q --no-deps --no-build-isolation . \
    && /opt/matriarch/bin/python -m compileall -q /opt/matriarch/lib


FROM base AS node
# Debian's package would make a cluster of its own at once; the agent makes it.
RUN mkdir -p /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql-15 python3 tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=agent /opt/matriarch /opt/matriarch
ENV PATH=/opt/matriarch/bin:/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin
# The data directory is below the volume, not the volume itself: a directory that is replaced is renamed.
WORKDIR /var/lib/postgresql
USER postgres
EXPOSE 5432 8008
# tini reaps what loses its parent, and hands SIGTERM to the agent alone: stopping the server is the agent's work.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["matriarch", "run"]


FROM base AS etcd
RUN apt-get update \
    && apt-get install -y --no-install-recommends etcd-server etcd-client \
    && rm -rf /var/lib/apt/lists/*
ENV ETCDCTL_API=3
USER etcd
EXPOSE 2379 2380
CMD ["etcd"]


FROM base AS haproxy
RUN apt-get update \
    && apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY docker/haproxy.cfg /etc/haproxy/haproxy.cfg
USER haproxy
EXPOSE 5000 5001 7000
CMD ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
