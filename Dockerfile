# The image of streamsrv: docker build --tag streamsrv . (compose files: conf/compose*.yaml, docs/install.md)
ARG BASE=docker.io/library/debian:trixie-slim

FROM ${BASE} AS build
# EXTRAS=[cjk] adds a font of 33 MB for annotations in Chinese, Japanese and Korean.
ARG EXTRAS=
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY streamsrv streamsrv
COPY codecs codecs
# pip, debug symbols, type stubs and tests of packages are not needed at run time: a third of the size. Neither
# are the codecs that no transfer syntax and no rendered picture has, nor the libraries that only they link.
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-venv binutils >/dev/null \
    && python3 -m venv /opt/streamsrv \
    && /opt/streamsrv/bin/python -m pip install --no-cache-dir --disable-pip-version-check ".${EXTRAS}" \
    && /opt/streamsrv/bin/python -m pip uninstall --yes pip \
    && find /opt/streamsrv -type d \( -name tests -o -name f2py -o -path '*/pydicom/sr' \) -prune -exec rm -r {} + \
    && find /opt/streamsrv \( -name '*.py[ix]' -o -name '*.pxd' -o -name '*.[ah]' -o -name '_cffi.*.so' \) -delete \
    && cd /opt/streamsrv/lib/python3*/site-packages \
    && find imagecodecs -name '_*.so' ! -name '_shared*' ! -name '_htj2k.*' ! -name '_jpeg2k.*' ! -name '_jpeg8.*' \
        ! -name '_jpegls.*' ! -name '_jpegxl.*' ! -name '_png.*' -delete \
    && rm PIL/_avif.*.so && ldd imagecodecs/*.so PIL/*.so >/tmp/linked \
    && for each in imagecodecs.libs/* pillow.libs/*; do grep -q "/$each " /tmp/linked || rm "$each"; done \
    && find /opt/streamsrv -name '*.so*' -type f -exec strip --strip-unneeded {} + \
    && /opt/streamsrv/bin/python -m compileall -q /opt/streamsrv/lib

# ca-certificates: to check the certificate of an issuer of tokens.
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends ca-certificates python3 >/dev/null \
    && rm -rf /var/lib/apt/lists /var/cache /var/log/apt /var/log/dpkg.log \
    && mkdir /data && chown 10001:10001 /data && chmod 0700 /data
COPY --from=build /opt/streamsrv /opt/streamsrv
ENV PATH=/opt/streamsrv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8943
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=30s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://localhost:8943/health/ready', timeout=5)"]
ENTRYPOINT ["streamsrv"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data"]
