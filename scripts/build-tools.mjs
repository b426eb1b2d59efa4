// What the system must have to build the native part.
import { spawnSync } from 'node:child_process'

/** Whether the command runs and succeeds. Its output is not shown. */
export function works(command, args, input = '') {
  return spawnSync(command, args, { input, stdio: ['pipe', 'ignore', 'ignore'] }).status === 0
}

/** Debian packages that the build needs and that are not there. */
export function missingPackages() {
  const missing = []
  if (!works('cmake', ['--version'])) missing.push('cmake')
  if (!works('make', ['--version']) && !works('ninja', ['--version'])) missing.push('make')
  if (!works('g++', ['--version'])) missing.push('g++')
  // Linked, not only looked for: this is what the build will do.
  const program = '#include <oneapi/dnnl/dnnl_version.h>\n#include <omp.h>\nint main() {}\n'
  const flags = ['-x', 'c++', '-', '-fopenmp', '-ldnnl', '-o', '/dev/null']
  if (missing.includes('g++') || !works('g++', flags, program)) missing.push('libdnnl-dev')
  return missing
}
