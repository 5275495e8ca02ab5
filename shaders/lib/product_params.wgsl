// Parameters that the tile and the matrix-vector product share.
struct Params {
    rows: u32,       // rows of x
    x_start: u32,    // vec4 index of the first of them
    width4: u32,     // vec4s of a row of x
    blocks: u32,     // blocks of 32 elements of a weight row
    n: u32,          // weight rows in this part of the matrix
    out_start: u32,  // index of the first row's first output of this part
    out_stride: u32, // outputs of a whole row
    first: u32,      // the part's first row in the matrix
}
