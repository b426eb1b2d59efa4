// Preloaded into every Node process of scripts/sanitize.mjs: where the usual binary is asked for,
// the one with sanitizers is loaded.
const { dlopen } = process

process.dlopen = (module, file, ...rest) =>
  dlopen.call(
    process,
    module,
    file.endsWith('.node') && /dit_native|node\.napi\.glibc/.test(file)
      ? process.env.DIT_SANITIZED
      : file,
    ...rest,
  )
