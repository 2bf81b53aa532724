# Sourced by the Makefile, .ci/run and by hand: where builds go and which tools speed them up.
# C++ goes through ccache when it is present (RocksDB costs half an hour of CPU otherwise), and
# linking through mold. Nothing here is required for a correct build.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/kvasir/target}"
if command -v ccache >/dev/null 2>&1; then
    export CC="${CC:-ccache cc}" CXX="${CXX:-ccache c++}"
    export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/kvasir/ccache}" CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-4G}"
    export CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=time_macros,locale
fi
if command -v mold >/dev/null 2>&1; then
    export RUSTFLAGS="${RUSTFLAGS:--C link-arg=-fuse-ld=mold}"
fi
