import path = require('node:path')

/**
 * The package's folder. A CommonJS file, because `__dirname` works in the sources (run by tsx) and in
 * the CommonJS build alike, where `import.meta` does not; lib/ and dist/ stand equally deep.
 */
export const packageRoot: string = path.dirname(__dirname)
