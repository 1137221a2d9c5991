# A static egressd on nothing, as an unprivileged user.
#
#   docker build -t egressd .
#   docker run -p 3128:3128 -v egressd-state:/var/lib/egressd -v "$PWD/configs/policy:/etc/egressd/policy:ro" egressd
#
# There is no Docker engine where this was written. What was checked, by hand: the build
# line below gives a file that `file` calls statically linked, it starts in an empty root
# (chroot) with the files and the environment below and nothing else, as uid 65532, and
# answers /readyz.
FROM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -tags netgo -ldflags "-s -w -X main.version=${VERSION}" -o /out/egressd ./cmd/egressd
RUN install -d -m 0700 -o 65532 -g 65532 /out/state && install -d /out/etc/policy && cp configs/egressd.yaml /out/etc/

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/egressd /egressd
COPY --from=build /out/etc /etc/egressd
COPY --from=build --chown=65532:65532 /out/state /var/lib/egressd
# The image's own defaults: inside a container the listeners that others must reach
# cannot be on loopback. The API stays on its unix socket in the state directory.
ENV EGRESSD_LISTEN_PROXY=0.0.0.0:3128 \
    EGRESSD_LISTEN_OPS=0.0.0.0:9464 \
    EGRESSD_POLICY_DIR=/etc/egressd/policy \
    EGRESSD_STATE_DIR=/var/lib/egressd
USER 65532:65532
VOLUME /var/lib/egressd
EXPOSE 3128 9464
ENTRYPOINT ["/egressd"]
CMD ["serve", "--config", "/etc/egressd/egressd.yaml"]
