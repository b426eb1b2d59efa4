import path = require('node:path')

/**
 * The folder of the compiled modules, or of the sources. A CommonJS file, because `__dirname` works in
 * the sources (run by tsx) and in the CommonJS build alike, where `import.meta` does not.
 */
export const modulesFolder: string = __dirname

/** The package's folder; lib/ and dist/ stand equally deep. */
export const packageRoot: string = path.dirname(__dirname)
