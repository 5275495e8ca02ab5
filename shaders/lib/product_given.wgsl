// A dispatch gives the parameters.
var<immediate> params: Params;
