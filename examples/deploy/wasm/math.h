/* As much of math.h as exported networks need, in instructions of WebAssembly: for clang without a C library.
 *
 * local_response_norm takes log and pow as well; for those compile with a whole one (wasi-sdk, emscripten). */

#ifndef DEPLOY_MATH_H
#define DEPLOY_MATH_H

#define INFINITY __builtin_inff()
#define fabs(x) __builtin_fabs(x)
#define fabsf(x) __builtin_fabsf(x)
#define sqrt(x) __builtin_sqrt(x)
#define sqrtf(x) __builtin_sqrtf(x)

#endif
